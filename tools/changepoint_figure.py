"""Draws docs/figures/changepoint_delay.png from benchmarks/results/changepoint.json: delay against run length."""

import json
from pathlib import Path

from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
found = json.loads((ROOT / "benchmarks" / "results" / "changepoint.json").read_text())["delay against run length"]

figure = Figure(figsize=(7, 4.2), layout="constrained")
axes = figure.add_subplot()
for i, (name, points) in enumerate(sorted(found.items(), key=lambda item: (not item[0].startswith("dif."), item[0]))):
    ours = name.startswith("dif.")
    axes.plot(
        [p["arl"] for p in points],
        [p["delay"] for p in points],
        "-" if ours else "--",
        marker="o^sDvP*X"[i % 8],
        markersize=4,
        linewidth=2 if ours else 1.2,
        label=name,
    )
axes.set(
    xscale="log",
    yscale="log",
    xlabel="updates to a false alarm, on average",
    ylabel="updates from change to alarm, on average",
    title="A jump of one standard deviation after 1,000 updates",
)
axes.set_xlim(600, 70_000)
axes.set_yticks([10, 15, 20, 30, 50, 80, 120], labels=["10", "15", "20", "30", "50", "80", "120"])
axes.minorticks_off()
axes.grid(alpha=0.3)
axes.legend(fontsize=8, ncols=2)
figure.savefig(ROOT / "docs" / "figures" / "changepoint_delay.png", dpi=110, metadata={"Software": None})
