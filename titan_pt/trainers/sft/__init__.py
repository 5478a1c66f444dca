"""Supervised fine-tuning."""

from titan_pt.trainers.sft.spec import SPEC

__all__ = ["SPEC"]
