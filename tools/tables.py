"""Draws the README's tables from benchmarks/results/*.json; with ``--check``, says whether they are fresh."""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def read(name):
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def llc():
    """Time of one draw of one chain, and the error on a model whose value is known."""
    found = read("llc")
    what = {
        "W1": "toy model of superposition, 18 parameters",
        "W3": "MLP on digits, 26 k parameters",
        "W5": "MLP, 10 M parameters",
    }
    lines = [
        "| one draw of one chain, µs (4 chains, 1 thread) | devinterp_fast | devinterp 1.3.2 | forward + backward alone | speed-up |",
        "|---|---|---|---|---|",
    ]
    for name, title in what.items():
        row = found[name]
        us = row["us per chain and draw"]
        lines.append(
            f"| {title}, batch {row['batch']} | **{us['devinterp_fast']:,.0f}** | {us['devinterp 1.3.2']:,.0f} | "
            f"{us['forward + backward']:,.0f} | {row['devinterp over devinterp_fast']:.1f}x |"
        )
    row = found["regression"]
    free, same, other = row["devinterp_fast, nothing set"], row["devinterp_fast"], row["devinterp 1.3.2"]
    lines += [
        "",
        "| linear regression, d = 8 (theory: d / 2) | exact here | devinterp_fast | devinterp 1.3.2 |",
        "|---|---|---|---|",
        f"| same hand-set step, minibatches of 100 | {same['exact']:.2f} | {same['llc']:.2f} ± {same['mcse']:.2f}, "
        f"step bias {same['step bias']:+.2f} | {other['llc']:.2f}, std over chains {other['std over chains']:.2f} |",
        f"| nothing set | {free['exact']:.2f} | **{free['llc']:.2f} ± {free['mcse']:.2f}** | needs lr, nbeta, localization |",
    ]
    return lines


def update():
    found = read("update")
    lines = [
        "| fused SGLD step, 4 x 10 M float32, ns per number | 1 thread | 2 threads |",
        "|---|---|---|",
    ]
    for name in ("fused", "fused, no noise", "torch eager", "copy"):
        a, b = (found[f"threads {t}"]["ns per element"][name] for t in (1, 2))
        lines.append(f"| {name} | {a:.2f} | {b:.2f} |")
    return lines


def demo():
    """The transitions of the run whose figure stands above."""
    found = read("digits")
    lines = ["| onset | midpoint | end | known at | seen in | ground truth |", "|---|---|---|---|---|---|"]
    for row in found["transitions"]:
        numbers = " | ".join(f"{row[key]:.0f}" for key in ("onset", "midpoint", "end", "alarm"))
        lines.append(f"| {numbers} | {', '.join(sorted(row['observables']))} | {row['marker'] or '-'} |")
    return [*lines, "", found["verdict"]]


TABLES = {"demo": demo, "llc": llc, "update": update}


def draw(text):
    for name, table in TABLES.items():
        body = "\n".join(table())
        text, count = re.subn(
            rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", lambda m, b=body: f"{m[1]}{b}\n{m[2]}", text, flags=re.S
        )
        if count != 1:
            sys.exit(f"README.md: expected one place for table {name!r}, got {count}")
    return text


old = README.read_text()
new = draw(old)
if "--check" not in sys.argv[1:]:
    README.write_text(new)
elif new != old:
    sys.exit("README.md: expected the tables of benchmarks/results, got others: run `python tools/tables.py`")
