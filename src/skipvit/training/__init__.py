"""How the network learns: optimizer, step, phases, loop, checkpoints."""
