"""Changes of weights that leave a model's function as it is and make it easier to round."""
