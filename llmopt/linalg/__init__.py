"""Hessians, their statistics and factors: tensor -> tensor, no files, no models."""

from llmopt.linalg.factor import Factor, Part, Symmetric
from llmopt.linalg.hessian import all_finite
from llmopt.linalg.statistics import InputMoments, InputStatistics, MeanSquares, accumulated

__all__ = [
    "Factor",
    "InputMoments",
    "InputStatistics",
    "MeanSquares",
    "Part",
    "Symmetric",
    "accumulated",
    "all_finite",
]
