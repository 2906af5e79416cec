"""Model: the decoder, its trunk and family experts, objectives and the Hugging Face export."""
