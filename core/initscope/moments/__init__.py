"""Moments of any module's values and gradients, layer by layer, before step 0: see ``prediction.predict``."""

from initscope.moments.prediction import METRICS, Layer, Prediction, predict

__all__ = ["METRICS", "Layer", "Prediction", "predict"]
