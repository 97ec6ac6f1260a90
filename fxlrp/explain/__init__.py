"""What a user calls: the converted model, one attribution, the attribution of generated text."""
