"""Draws the tables of README.md and docs/changes.md from benchmarks/results/*.json.

With ``--check`` it says whether they are fresh.
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


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
        "| one draw of one chain, µs (4 chains, 1 thread) | devinterp_fast | its torch engine | devinterp 1.3.2 | "
        "forward + backward alone | speed-up |",
        "|---|---|---|---|---|---|",
    ]
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
        "| linear regression, d = 8 (theory: d / 2) | exact here | devinterp_fast | devinterp 1.3.2 |",
        "|---|---|---|---|",
        f"| same hand-set step, minibatches of 100 | {same['exact']:.2f} | {same['llc']:.2f} ± {same['mcse']:.2f}, "
        f"step bias {same['step bias']:+.2f} | {other['llc']:.2f}, std over chains {other['std over chains']:.2f} |",
        f"| nothing set | {free['exact']:.2f} | **{free['llc']:.2f} ± {free['mcse']:.2f}** | "
        "needs lr, nbeta, localization |",
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


def stages():
    """Held-out scores of the stage detector, one default for all systems."""
    found = read("stages")
    lines = ["| system | transitions | precision | recall |", "|---|---|---|---|"]
    for name, row in found.items():
        if name not in ("all", "nulls", "environment"):
            lines.append(f"| {name} | {row['transitions']} | {row['precision']:.2f} | {row['recall']:.2f} |")
    whole, null = found["all"], found["nulls"]
    lines.append(f"| **all** | {whole['transitions']} | **{whole['precision']:.2f}** | **{whole['recall']:.2f}** |")
    return [*lines, "", f"False rows on {null['curves']} curves without a transition: {null['false rows']}."]


TABLES = {"README.md": {"demo": demo, "llc": llc, "update": update}, "docs/changes.md": {"stages": stages}}


def draw(page, text):
    for name, table in TABLES[page].items():
        body = "\n".join(table())
        text, count = re.subn(
            rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", lambda m, b=body: f"{m[1]}{b}\n{m[2]}", text, flags=re.S
        )
        if count != 1:
            sys.exit(f"{page}: expected one place for table {name!r}, got {count}")
    return text


for page in TABLES:
    old = (ROOT / page).read_text()
    new = draw(page, old)
    if "--check" not in sys.argv[1:]:
        (ROOT / page).write_text(new)
    elif new != old:
        sys.exit(f"{page}: expected the tables of benchmarks/results, got others: run `python tools/tables.py`")
