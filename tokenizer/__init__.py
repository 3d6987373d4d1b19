"""The tokenizer: a VQGAN that turns a picture into codes and codes into a picture.

model.py the net; quantizer.py the codebook; load.py foreign and own weights; bulk.py many pictures, fast; losses.py,
train.py and evaluate.py make and judge one, and only these two know the rest of the project.
"""

from tokenizer.bulk import BulkEncoder
from tokenizer.load import pretrained_names
from tokenizer.model import VQGAN, TokenizerError, VQGANConfig

__all__ = ["VQGAN", "BulkEncoder", "TokenizerError", "VQGANConfig", "pretrained_names"]
