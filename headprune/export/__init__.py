"""Write a model for engines that don't read transformers directories."""
