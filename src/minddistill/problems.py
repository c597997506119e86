"""What a model's outputs mean: kinds of problem, by the names that Hugging Face configurations give them."""

SINGLE = "single_label_classification"
MULTI = "multi_label_classification"
REGRESSION = "regression"
TOKEN = "token_classification"
PROBLEMS = (SINGLE, MULTI, REGRESSION, TOKEN)

# The label of a position where no word begins, in a token task; PyTorch's cross-entropy leaves the same one out.
IGNORED = -100
# What stands between the labels of a row of a multi-label task.
SEPARATOR = "|"
