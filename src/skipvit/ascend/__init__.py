"""Ascend 910A: launcher, checks of the machine, audit of operators."""
