"""A finished run put to use: what it says about images that it has never seen."""

from bloodcell.predict.classifier import Answer, Classifier, open_classifier
from bloodcell.predict.inputs import Inputs, list_inputs
from bloodcell.predict.job import PredictOptions, predict

__all__ = ["Answer", "Classifier", "Inputs", "PredictOptions", "list_inputs", "open_classifier", "predict"]
