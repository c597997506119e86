"""MindDistill: distil large BERT-family text classifiers into small, fast ones on MindSpore."""

__version__ = "0.1.0"
