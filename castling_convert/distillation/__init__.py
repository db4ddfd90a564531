"""Distillation: data, losses, annealing schedules, and the loop."""
