"""Draws the tables of the README and the docs from benchmarks/results/*.json; ``--check`` asks if they are fresh."""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def read(name):
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def head(columns):
    """A table's first row and the rule under it."""
    return [columns, "|" + "---|" * (columns.count("|") - 1)]


def llc():
    """Time of one draw of one chain, and the error on a model whose value is known."""
    found = read("llc")
    what = {
        "W1": "toy model of superposition, 18 parameters",
        "W3": "MLP on digits, 26 k parameters",
        "W5": "MLP, 10 M parameters",
    }
    lines = head(
        "| one draw of one chain, µs (4 chains, 1 thread) | devinterp_fast | its torch engine | devinterp 1.3.2 | "
        "forward + backward alone | speed-up |"
    )
    for name, title in what.items():
        row = found[name]
        us = row["us per chain and draw"]
        lines.append(
            f"| {title}, batch {row['batch']} | **{us['devinterp_fast']:,.1f}** ({row['engine'].split('/')[0]}) | "
            f"{us['devinterp_fast, torch engine']:,.0f} | {us['devinterp 1.3.2']:,.0f} | "
            f"{us['forward + backward']:,.0f} | {row['devinterp over devinterp_fast']:.1f}x |"
        )
    row = found["regression"]
    free, same, other = row["devinterp_fast, nothing set"], row["devinterp_fast"], row["devinterp 1.3.2"]
    lines += [
        "",
        *head("| linear regression, d = 8 (theory: d / 2) | exact here | devinterp_fast | devinterp 1.3.2 |"),
        f"| same hand-set step, minibatches of 100 | {same['exact']:.2f} | {same['llc']:.2f} ± {same['mcse']:.2f}, "
        f"step bias {same['step bias']:+.2f} | {other['llc']:.2f}, std over chains {other['std over chains']:.2f} |",
        f"| nothing set | {free['exact']:.2f} | **{free['llc']:.2f} ± {free['mcse']:.2f}** | "
        "needs lr, nbeta, localization |",
    ]
    return lines


def update():
    found = read("update")
    lines = head("| fused SGLD step, 4 x 10 M float32, ns per number | 1 thread | 2 threads |")
    for name in ("fused", "fused, no noise", "torch eager", "copy"):
        a, b = (found[f"threads {t}"]["ns per element"][name] for t in (1, 2))
        lines.append(f"| {name} | {a:.2f} | {b:.2f} |")
    return lines


def demo():
    """The transitions of the run whose figure stands above."""
    found = read("digits")
    lines = head("| onset | midpoint | end | known at | seen in | ground truth |")
    for row in found["transitions"]:
        numbers = " | ".join(f"{row[key]:.0f}" for key in ("onset", "midpoint", "end", "alarm"))
        lines.append(f"| {numbers} | {', '.join(sorted(row['observables']))} | {row['marker'] or '-'} |")
    return [*lines, "", found["verdict"]]


def curvature():
    """Times of the spectral tasks, ours and the peers', over both workloads."""
    found = read("curvature")
    rows = [
        ("eigenvalues", "ten largest eigenvalues to 1e-3"),
        ("density", "density, 10 probes x 30 steps"),
        ("fisher", "empirical Fisher, ten largest eigenvalues"),
    ]
    titles = {"W3": "MLP on digits, 26 k parameters", "W4": "attention-only transformer, 53 k parameters"}
    lines = head("| ms | devinterp_fast | its torch engine | the others |")
    for workload, title in titles.items():
        for key, task in rows:
            row = found.get(f"{workload} {key}")
            if row is None:
                continue
            ours = ("devinterp_fast", "devinterp_fast, torch engine")
            others = ", ".join(
                f"{name.split(',')[0]} {ms:,.0f} ({row['over devinterp_fast'][name]:.1f}x)"
                for name, ms in sorted(row["ms"].items(), key=lambda item: item[1])
                if name not in ours
            )
            lines.append(
                f"| {title}: {task} | **{row['ms'][ours[0]]:,.0f}** | {row['ms'][ours[1]]:,.0f} | {others or '-'} |"
            )
    of_eight = " and ".join(
        f"{found[f'{workload} stack']['eight over eight times one, eigenvalues']:.2f}" for workload in titles
    )
    lines += ["", f"Eight checkpoints' eigenvalues in one call take {of_eight} times the eight one by one."]
    if "W5" in found:
        row = found["W5"]
        lines += [
            "",
            f"The ten largest eigenvalues of {row['parameters'] / 1e6:.0f} million parameters to {row['tol']:g}: "
            f"{row['products']} products, {row['seconds']:.0f} s on {row['threads']} threads, "
            f"{row['peak GiB']:.1f} GiB at the peak ({row['engine'].split('/')[0]} engine).",
        ]
    return lines


def curvature_native():
    """One product against one gradient of the same engine, and the floor under it."""
    found = read("curvature_native")
    titles = {"W3": "MLP on digits", "W4": "attention-only transformer"}
    lines = head(
        "| | product over gradient, 1 probe | 10 probes | their flops | share of peak: gradient, product | "
        "torch's cached graph over ours, float32, float64 | 8 checkpoints over 8 times one |"
    )
    for workload, title in titles.items():
        row = found[workload]
        lines.append(
            f"| {title} | {row['hvp_1']:.2f} | **{row['hvp_10']:.2f}** | {row['flops_hvp_over_gradient']:.2f} | "
            f"{row['gradient_of_peak']:.2f}, {row['hvp_10_of_peak']:.2f} | "
            f"{row['torch_over_hvp_10']:.1f}, {row['torch_over_hvp_10_float64']:.1f} | {row['eight_over_one']:.2f} |"
        )
    row, names = found["W3"], [name for name in found if name.startswith("gram_schmidt")]
    share = row["flops_hvp_over_gradient"] / 1.5 * row["gradient_of_peak"]
    basis = " and ".join(f"{found[name]['over_reading_twice']:.1f}" for name in names)
    return [
        *lines,
        "",
        f"On the MLP a product at 1.5 gradients would run at {share:.2f} of the core's peak, all else than matrix "
        f"products included. Reorthogonalization takes {basis} times two readings of the basis.",
    ]


def percent(x):
    return "-" if x is None else f"{100 * x:.1f} %"


def truth():
    """The default against known truths, by family."""
    found = read("truth")
    lines = head(
        "| systems | runs | median error to target | 90th percentile | median and 90th to lambda | order preserved | "
        "failures (unreported) | longest, s |"
    )
    for part in ("default", "minibatch"):
        for family, scores in found.get(part, {}).get("scores", {}).items():
            a, b = scores["target"], scores["lambda"]
            name = "random deep linear, minibatches only" if part == "minibatch" else family
            lines.append(
                f"| {name} | {a['runs']} | **{percent(a['median relative error'])}** | "
                f"{percent(a['90th percentile'])} | "
                f"{percent(b['median relative error'])}, {percent(b['90th percentile'])} | "
                f"{percent(a['order preserved'])} | {a['failures']} ({a['failures unreported']}) | "
                f"{a['longest, seconds']:.0f} |"
            )
    found = read("truth")["saddles"]["scores"]
    told = ", ".join(
        f"{scores['recognized']} of {scores['runs']} by {name.removeprefix('saddles, ')}"
        for name, scores in found.items()
    )
    lines += [
        "",
        f"Saddles that the verdict names, of random nets that have not learned their weakest direction: {told}.",
    ]
    return lines


def coverage():
    """How often the 95 % interval holds the exact value."""
    found = read("truth").get("coverage", {}).get("scores", {})
    lines = head("| system | runs | 95 % interval holds the target | mean error, in standard errors |")
    for name, scores in found.items():
        lines.append(
            f"| {name} | {scores['target']['runs']} | {percent(scores['covered'])} | {scores['mean z']:+.2f} |"
        )
    runs = sum(scores["target"]["runs"] for scores in found.values())
    held = sum(scores["target"]["runs"] * scores["covered"] for scores in found.values())
    return [*lines, f"| all | {runs} | **{percent(held / runs)}** | |"] if runs else lines


def samplers():
    """Each sampler by itself at three steps."""
    found = read("truth").get("samplers", {}).get("scores", {})
    names = list(dict.fromkeys(key.split()[0] for key in found))
    steps = list(dict.fromkeys(key.split()[1] for key in found))
    settings = " | ".join(f"step {s}" for s in steps)
    lines = head(f"| relative error (signed), order preserved, failures (unreported) of runs | {settings} |")
    for name in names:
        cells = [found[f"{name} {s}"]["target"] for s in steps if f"{name} {s}" in found]
        row = " | ".join(
            f"{percent(c['median relative error'])} ({percent(c['median signed'])}), {percent(c['order preserved'])}, "
            f"{c['failures']} ({c['failures unreported']}) of {c['runs']}"
            for c in cells
        )
        lines.append(f"| {name} | {row} |")
    return lines


def time_to_error():
    """Seconds to a standard error of 5 %, theirs and ours."""
    found = read("time_to_error") if (ROOT / "benchmarks" / "results" / "time_to_error.json").exists() else {}
    lines = head("| workload | run | sampler | draws of a chain after burn-in | LLC | seconds | faster |")
    for workload in ("W1", "W2", "W3"):
        row = found.get(workload, {})
        for name in ("devinterp 1.3.2", "same step", "best", "untuned"):
            if name in row:
                r = row[name]
                faster = f"**{r['faster']:{'.0f' if r['faster'] >= 10 else '.2g'}}x**" if "faster" in r else ""
                lines.append(
                    f"| {workload} | {name} | {r['sampler']} | {r['draws']:,} after {r['burn_in']:,} | "
                    f"{r['llc']:.2f} ± {r['mcse']:.2f} | {r['seconds']:.2g} | {faster} |"
                )
    return lines


def same_call():
    """One call of devinterp 1.3, and only the import changed."""
    found = read("estimators")
    lines = head("| the same call | devinterp 1.3.2 | here | joint error | speed-up |")
    for name in ("W1", "W3", "regression"):
        row = found.get(f"same call, {name}")
        if row:
            llc = row["llc"]
            lines.append(
                f"| {name}, {row['draws']} draws | {llc['devinterp 1.3.2']:.3g} | {llc['devinterp_fast']:.3g} | "
                f"{llc['joint error']:.2g} | {row['devinterp over devinterp_fast']:.0f}x |"
            )
    return lines


def estimators():
    """What watching a run costs."""
    found = read("estimators")
    rows = {name: found[f"cost, {name}"] for name in ("W1", "W3") if f"cost, {name}" in found}
    heads = [f"{name}: {r['parameters']:,} parameters, {r['samples']:,} samples" for name, r in rows.items()]
    lines = head(f"| time over that of `estimate_llc`, every draw watched | {' | '.join(heads)} |")
    first = next(iter(rows.values()))["over estimate_llc"]
    for name in sorted(first, key=lambda name: first[name]):
        lines.append(f"| `{name}` | " + " | ".join(f"{r['over estimate_llc'][name]:.1f}" for r in rows.values()) + " |")
    return lines


def stages():
    """Held-out scores of the stage detector, one default for all systems."""
    found = read("stages")
    lines = head("| system | transitions | precision | recall |")
    for name, row in found.items():
        if name not in ("all", "nulls", "more parity", "environment"):
            lines.append(f"| {name} | {row['transitions']} | {row['precision']:.2f} | {row['recall']:.2f} |")
    whole, null = found["all"], found["nulls"]
    lines.append(f"| **all** | {whole['transitions']} | **{whole['precision']:.2f}** | **{whole['recall']:.2f}** |")
    floor, more = read("stages_floor"), found["more parity"]
    return [
        *lines,
        "",
        f"Twelve more runs of parity, one task, held out: {more['transitions']} transitions, precision "
        f"{more['precision']:.2f}, recall {more['recall']:.2f}.",
        "",
        f"False rows on {null['curves']} curves without a transition: {null['false rows']}.",
        "",
        "LLC-like, noise-free, from the nearest curve that only slows down, in standard errors: the "
        f"{floor['first']} first steps of the tuning half at least {floor['least first']:.1f}, "
        f"the {floor['later']} later ones at most {floor['largest later']:.1f}.",
    ]


def digits():
    """Rows of the watched digits against the known transitions, seed by seed."""
    found = {name: row for name, row in read("stages_digits").items() if name != "environment"}
    seeds = sorted(found, key=lambda name: int(name.split()[1]))
    lines = ["| seed | transitions | found | rows |", "|---|---|---|---|"]
    whole = {key: sum(row[key] for row in found.values()) for key in ("known", "hits", "rows")}
    for name, row in [*((name.split()[1], found[name]) for name in seeds), ("**all**", whole)]:
        lines.append(f"| {name} | {row['known']} | {row['hits']} | {row['rows']} |")
    precision, recall = whole["hits"] / whole["rows"], whole["hits"] / whole["known"]
    return [*lines, "", f"Precision {precision:.2f}, recall {recall:.2f}."]


def detector_speed():
    """Nanoseconds per channel-update, and the peers of the same run."""
    found = read("changepoint")
    lines = head("| ns per channel-update, one thread | blocks of 32 steps | one step a call | bytes per channel |")
    for model in ("mean", "kink"):
        for channels in (100_000, 1_000_000):
            row = found[f"{model}, {channels} channels"]
            many, one = row["block 32"], row["block 1"]
            lines.append(
                f"| {model}, {channels:,} channels | **{many['median block']:.1f}** | {one['median block']:.1f} | "
                f"{many['bytes per channel']:.0f} |"
            )
    for name in ("focus_cpt", "river ADWIN"):
        row = found[name]
        times = f"{row['ns per channel-update']:,.0f} ({row['over kink']:,.0f}x kink, blocks of {row['block']})"
        lines.append(f"| {name}: one object a channel | | {times} | |")
    lines += ["", *head("| 10,000 channels, blocks of 32 | all seen | one value in fifty missing |")]
    for model in ("mean", "kink", "jump+kink", "meanvar"):
        row = found[f"{model}, own weights"]
        lines.append(f"| {model} | {row['shared']:.1f} | {row['missing values']:.1f} |")
    return lines


def detector_truth():
    """What was asked of the detector and what came."""
    found = read("changepoint")
    lines = head("| realised run length over the request (alarms counted) | 1 channel | 1,000 | 100,000 |")
    for kind in ("white", "AR(1) 0.5, phi estimated", "unequal errors", "log-spaced"):
        row = found[f"run length, {kind}"]
        cells = [f"{row[m]['ratio']:.2f} ({row[m]['alarms']:,})" for m in ("1", "1000", "100000")]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    lines += ["", *head("| delay at equal false alarms, updates | grid | exact | ratio |")]
    for size in ("0.5", "1.0", "2.0"):
        row = found["delay"][f"shift {size}"]
        lines.append(f"| jump by {size} sd | {row['grid'][0]:.1f} | {row['exact'][0]:.1f} | {row['ratio']:.2f} |")
    row = found["trend"]
    lines += [
        "",
        "On a trend of .01 sd a step, over 2,000 steps, the kink model gives an alarm in "
        f"{row['false alarms on a trend']:.3f} of runs (asked: {row['nominal']:.3f}); it finds the slope doubled after "
        f"{row['delay to a doubled slope']:.0f} steps ({100 * row['missed']:.1f} % not within 1,000).",
        "",
        *head("| channels named at a false share of 0.1, of 400 | runs | false share | of the changed found |"),
    ]
    for name, row in found["localization"].items():
        lines.append(
            f"| {name} | {row['runs']} | {row['false share']:.3f} ± {row['its error']:.3f} | {row['found']:.2f} |"
        )
    lines += ["", *head("| intervals of 95 % | alarms | coverage | median width |")]
    for name, row in found["intervals"].items():
        lines.append(f"| {name} sd | {row['alarms']:,} | {percent(row['coverage'])} | {row['width']:.0f} |")
    lines += ["", *head("| published stage ends, 20 noise seeds | found | known at, times the end |")]
    for name in ("language model", "regression transformer"):
        row = found[f"stage ends, {name}"]
        for end, count, at in zip(row["ends"], row["found, of 20"], row["known at, times the end"], strict=True):
            lines.append(f"| {name}, {end:,} | {count} of 20 | {at:.2f} |")
        lines.append(f"| {name}, invented | {row['false']} | |")
    return lines


def annotated():
    """F1 and covering on annotated series."""
    found = read("changepoint")["annotated series"]
    methods = ("dif.segment", "PELT (ruptures)", "BOCPD (reference)", "no change")
    lines = head("| F1 / covering | " + " | ".join(methods) + " |")
    for name in sorted(found, key=lambda name: (name == "mean", name)):
        cells = [f"{found[name][m]['f1']:.2f} / {found[name][m]['covering']:.2f}" for m in methods]
        lines.append(f"| {'**mean**' if name == 'mean' else name} | " + " | ".join(cells) + " |")
    return lines


def parts_of_a_step(unit, title, row, digits, *further):
    """One row: what a step is made of, and what it is compared with."""
    names = ("forward", "backward", "update", "rest", "step", *further)
    cells = " | ".join(f"{row[name]:.{digits}f}" for name in names)
    return [*head(f"| {unit} of a chain and step | {' | '.join(names)} |"), f"| {title} | {cells} |"]


def engine_deep():
    """What a step of a deep linear network is made of."""
    row = read("engine")["W2 parts"]
    row["a fifth of JAX's"] = read("peers")["W2"]["us per chain and step"]["jax"] / 5
    title = "four layers of 16 x 16, batch 256"
    return parts_of_a_step("µs", title, row, 2, "products at peak", "a fifth of JAX's")


def engine_large():
    """What a step of 10 M parameters on 8 rows is made of."""
    row = read("engine")["W5 parts"]
    return parts_of_a_step(
        "ms", "10 M parameters, batch 8", row, 1, "step of a recorded draw", "bytes at a copy's speed"
    )


def engine_many():
    """A step of one chain among more and more chains, and what a chain holds."""
    found = read("engine")
    chains = sorted(found["W1 many"]["us"], key=int)
    heads = " | ".join(f"{int(c):,} chains" for c in chains)
    lines = head(f"| µs of a chain and step, 1 thread | {heads} | a chain's memory at {int(chains[-1]):,} |")
    titles = {"W1": "toy model of superposition, batch 128", "W3": "MLP on digits, batch 256"}
    for name, title in titles.items():
        row = found[f"{name} many"]
        cells = " | ".join(f"{row['us'][c]:,.3g}" for c in chains)
        lines.append(
            f"| {title}, {row['parameters']:,} parameters | {cells} | {row['bytes a chain']:,.0f} bytes, "
            f"{row['bytes expected']:,} accounted for |"
        )
    return lines


def cuda_cost():
    """What a machine without a GPU pays for the CUDA module."""
    found = read("cuda_cost")
    seconds, milliseconds = found["seconds to import"], 1e3 * found["seconds more for the CUDA module"]
    whole, part = (found[f"bytes of the {what}"] / 1e6 for what in ("wheel", "CUDA module"))
    imported, torch = seconds["with the CUDA module"], seconds["torch"]
    return [
        f"`import devinterp_fast` takes {imported:.1f} s, of them torch's {torch:.1f} s; the CUDA module's share is "
        f"{milliseconds:.0f} ms. The wheel has {whole:.1f} MB, the CUDA module {part:.1f} MB of them. A step called "
        f"from Python takes {found['microseconds of a call']:.1f} µs when there is next to nothing to compute (on the "
        "CPU: no GPU was at hand).",
    ]


TABLES = {
    ROOT / "docs" / "engines.md": {"many": engine_many, "deep": engine_deep, "large": engine_large},
    ROOT / "docs" / "changes_measured.md": {"speed": detector_speed, "truth": detector_truth, "annotated": annotated},
    ROOT / "docs" / "changes.md": {"stages": stages},
    ROOT / "docs" / "watching.md": {"digits": digits},
    ROOT / "docs" / "truth.md": {"truth": truth, "coverage": coverage, "samplers": samplers, "time": time_to_error},
    README: {"demo": demo, "llc": llc, "update": update},
    ROOT / "docs" / "curvature.md": {"curvature": curvature, "curvature native": curvature_native},
    ROOT / "docs" / "cuda.md": {"cost": cuda_cost},
    ROOT / "docs" / "estimators.md": {"estimators": estimators},
    ROOT / "docs" / "migration.md": {"same call": same_call},
}


def draw(page, text):
    for name, table in TABLES[page].items():
        body = "\n".join(table())
        text, count = re.subn(
            rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", lambda m, b=body: f"{m[1]}{b}\n{m[2]}", text, flags=re.S
        )
        if count != 1:
            sys.exit(f"{page.name}: expected one place for table {name!r}, got {count}")
    return text


for page in TABLES:
    old = page.read_text()
    new = draw(page, old)
    if "--check" not in sys.argv[1:]:
        page.write_text(new)
    elif new != old:
        sys.exit(f"{page.name}: expected the tables of benchmarks/results, got others: run `python tools/tables.py`")
