"""What a model is made of, found out rather than written down."""
