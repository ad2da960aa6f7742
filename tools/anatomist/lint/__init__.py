"""Looks over code that uses interpretability libraries for calls that are gone, dangerous or silently wrong."""

from .check import Found, check_file, check_source
from .rules import RULES, Rule

__all__ = ["RULES", "Found", "Rule", "check_file", "check_source"]
