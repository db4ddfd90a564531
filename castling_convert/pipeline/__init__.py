"""The whole job: load -> castle -> distill -> fold -> save, one bundle at the end or nothing."""

from .conversion import convert, default_recipe

__all__ = ["convert", "default_recipe"]
