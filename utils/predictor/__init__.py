"""Label texts with a folder that quantize.py or cascade.py of FastFormers wrote, into which this package is copied.

With that folder in sys.path, or with a copy of this package, under any name, and Predictor("my-model"):

    from predictor import Predictor
    Predictor().predict("a fine film").label

Needs what requirements.txt names: onnxruntime, tokenizers and numpy. An import changes nothing in the program that does
it, and leaves onnxruntime to the first Predictor: a process forked after onnxruntime was imported hangs at its end.
"""

from .errors import UserError
from .model import Prediction, Predictor

__all__ = ["Prediction", "Predictor", "UserError"]
