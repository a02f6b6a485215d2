"""Annotated real series, their scores, and a plain Bayesian detector to stand beside ours. Nothing was tuned on them.

Series and annotations (first index of a new segment, five people each) are from the Turing Change Point Dataset
(van den Burg, Williams 2020, arXiv 2003.06222; annotations: MIT license, copyright 2020 The Alan Turing Institute).
Nile: in the public domain (Cobb 1978). GDP of Iran, Croatia and Japan in constant local currency, and rail lines: World
Bank, CC BY 4.0, here rounded to five digits. Ozone: Hegglin et al. (2015), public domain, charted by Our World in Data,
CC BY 4.0. Taken are those of the set that are short, free and not used anywhere else here.
"""

import itertools
import math

import numpy as np
from scipy import special

SERIES = {
    "nile": (
        "1120 1160 963 1210 1160 1160 813 1230 1370 1140 995 935 1110 994 1020 960 1180 799 958 1140 1100 1210 "
        "1150 1250 1260 1220 1030 1100 774 840 874 694 940 833 701 916 692 1020 1050 969 831 726 456 824 702 1120 "
        "1100 832 764 821 768 845 864 862 698 845 744 796 1040 759 781 865 845 944 984 897 822 1010 771 676 649 "
        "846 812 742 801 1040 860 874 848 890 744 749 838 1050 918 986 797 923 975 815 1020 906 901 1170 912 746 "
        "919 718 714 740",
        [[], [28], [], [28], [28]],
    ),
    "gdp_iran": (
        "835.37 931.25 1011.3 1084.8 1184.6 1388.5 1544.6 1724.3 1979.6 2302.9 2559.1 2928.1 3350.2 3637.1 3873.4 "
        "3779.7 4431 4250.9 3653.6 3269.4 2369.5 2246.8 2858.2 3102.9 2830.3 2891.2 2596.2 2613 2472 2620.8 2983.4 "
        "3352.8 3447.9 3483.7 3431.1 3509.4 3690.9 3708.7 3789.5 3821.9 4045.8 4077.3 4373.6 4755.6 4963.6 5121.9 "
        "5378 5816.6 5831.2 5890 6231.5 6396.3 5920.2 5908.7 6180.7 6099 6916.1 7175.8",
        [[15], [], [16, 22, 31], [17, 22], [16, 21]],
    ),
    "gdp_croatia": (
        "217.51 230.29 245.59 250.16 247.82 257.17 266.05 280.03 295.65 307.23 319.85 335.42 353.15 360.34 334.06 "
        "329.14 328.02 320.48 318.9 318.62 326.27 337.81 347.68 356.82",
        [[14], [], [], [14], [14]],
    ),
    "gdp_japan": (
        "15.951 19.263 21.86 25.019 29.43 32.742 38.026 44.561 52.776 61.994 76.539 84.216 96.418 117.4 140.09 "
        "154.79 173.83 193.71 213.31 231.2 250.64 268.83 282.58 295.3 313.15 333.69 350.34 366.34 393.64 421.47 "
        "453.61 482.85 495.06 495.29 501.54 512.54 525.81 534.14 527.88 519.65 526.71 523.01 515.99 515.4 520.97 "
        "524.13 526.88 531.69 520.72 489.5 500.35 491.41 494.96 503.18 513.88 531.99 538.45 546.49",
        [[], [], [], [32], [32]],
    ),
    "rail_lines": (
        "1000.5 996.15 994.91 992.09 983.3 975.34 963.88 949.39 941.81 938.66 977.07 973.21 964.58 973.47 970.99 "
        "968.16 971.14 970.15 964.15 963.07 968.94 956.61 962.64 959.89 958.12 989.33 1062 1061 1060.7 1056.1 "
        "1076.6 1057.7 1051.9 1051.8 1055.3 1052 1051.8",
        [[10, 25], [10, 26], [10, 25], [25, 26], [25]],
    ),
    "ozone": (
        "38 40 44 48 51 54 58 63 66 72 77 84 91 98 104 105 107 107 111 108 104 110 109 115 118 128 136 146 141 132 "
        "119 108 96 82 76 70 64 60 59 56 53 49 48 47 45 43 41 40 39 38 37 35 34 32",
        [[28], [28], [], [28], [14, 28]],
    ),
}


def f1(people, found, margin=5):
    """Harmonic mean of precision, against all annotations, and of recall, the annotators' mean; 0 is a boundary."""

    def hits(truth, said):
        left, count = sorted(said), 0
        for t in sorted(truth):
            near = [s for s in left if abs(s - t) <= margin]
            if near:
                left.remove(min(near, key=lambda s: abs(s - t)))
                count += 1
        return count

    said = {0, *found}
    truths = [{0, *person} for person in people]
    precision = hits(set().union(*truths), said) / len(said)
    recall = float(np.mean([hits(t, said) / len(t) for t in truths]))
    return 2 * precision * recall / (precision + recall)


def covering(people, found, n):
    """How well the best found segment overlaps each annotated one, by length; the annotators' mean."""

    def segments(cuts):
        edges = sorted({0, n, *cuts})
        return [set(range(a, b)) for a, b in itertools.pairwise(edges)]

    ours = segments(found)
    each = [sum(len(a) * max(len(a & b) / len(a | b) for b in ours) for a in segments(p)) / n for p in people]
    return float(np.mean(each))


def log_marginal(count, total, squares):
    """Of normal values with a normal-gamma prior (0, 1, 1, 1), from their number, sum and sum of squares."""
    kappa, alpha = 1 + count, 1 + count / 2
    beta = 1 + 0.5 * (squares - total**2 / kappa)
    return special.gammaln(alpha) - alpha * np.log(beta) - 0.5 * np.log(kappa) - count / 2 * math.log(2 * math.pi)


def bocpd_segments(y, hazard=0.01):
    """Most probable segmentation in the model of Adams and MacKay (2007): normal-gamma segments, constant hazard."""
    z = (y - y.mean()) / y.std()
    sums = np.stack([np.arange(len(z) + 1), np.append(0, np.cumsum(z)), np.append(0, np.cumsum(z * z))])
    best, last = np.zeros(len(z) + 1), np.zeros(len(z) + 1, dtype=int)
    for t in range(1, len(z) + 1):
        count, total, squares = sums[:, t : t + 1] - sums[:, :t]
        value = best[:t] + log_marginal(count, total, squares) + (count - 1) * math.log(1 - hazard) + math.log(hazard)
        best[t], last[t] = value.max(), value.argmax()
    cuts, t = [], len(z)
    while last[t] > 0:
        t = int(last[t])
        cuts.append(t)
    return cuts[::-1]


def bocpd_online(y, hazard=1e-3):
    """After each value of every series, minus the log posterior probability that the run goes back to the start.

    Shape:
        y: (n, series); returns (n, series).
    """
    n, series = y.shape
    log_run = np.zeros((1, series))  # log P(run began at tau, data), one row a beginning
    count, total, squares = np.zeros((1, 1)), np.zeros((1, series)), np.zeros((1, series))
    out = np.empty((n, series))
    for i in range(n):
        before = log_marginal(count, total, squares)
        log_run = log_run + log_marginal(count + 1, total + y[i], squares + y[i] ** 2) - before
        evidence = special.logsumexp(log_run, axis=0)
        log_run -= evidence
        out[i] = -log_run[0]
        log_run = np.concatenate([log_run + math.log1p(-hazard), np.full((1, series), math.log(hazard))])
        count = np.append(count + 1, [[0.0]], axis=0)
        total = np.concatenate([total + y[i], np.zeros((1, series))])
        squares = np.concatenate([squares + y[i] ** 2, np.zeros((1, series))])
        # beginnings of no weight go, but for the first, which is asked for
        kept = (log_run > math.log(1e-8)).any(axis=1)
        kept[0] = True
        log_run, count, total, squares = log_run[kept], count[kept], total[kept], squares[kept]
    return out
