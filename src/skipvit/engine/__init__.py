"""Training and evaluation: step, optimizer, phases, loop, checkpoints, devices."""
