"""Watch a training loop of your own: a deep linear network learns three modes, one after another.

Run with ``python examples/own_loop.py``; it takes a few seconds.
"""

import torch
from torch import nn

import devinterp_fast as dif

torch.manual_seed(0)
torch.set_num_threads(1)

teacher = torch.diag(torch.tensor([4.0, 2.0, 1.0, 0.0, 0.0, 0.0]))
x = torch.eye(6) * 6**0.5  # whitened inputs: the modes are learned independently
y = x @ teacher

model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False))
for weight in model.parameters():
    nn.init.normal_(weight, std=1e-3)  # near the saddle at zero, which is left one mode at a time
criterion = nn.MSELoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.03)

watch = dif.Monitor(
    model,
    criterion,
    (x, y),
    observables=["loss", "llc"],
    llc={"nbeta": 1e4, "localization": 1.0, "chains": 4, "draws": 20000, "batches": "full"},
    llc_schedule=dif.Schedule(per_decade=0, every=200),
)
for step in range(3001):
    change = watch.update(step)
    if change is not None and change.new:
        print(change)
    optimizer.zero_grad()
    criterion(model(x), y).backward()
    optimizer.step()

print()
for transition in watch.transitions:
    print(transition)
end = watch.trace[["llc", "llc_se"]].dropna("step").isel(step=-1)
print(f"\nLLC {float(end['llc']):.1f} ± {float(end['llc_se']):.1f} at the end")
print("theory for rank 3 of 6 x 6, in the limit of large nbeta: 17")
