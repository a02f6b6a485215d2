"""Watching a training run: observables on a schedule, alarms, checkpoints, transitions."""
