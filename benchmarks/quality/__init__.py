"""How good pruned models are: headprune's default beside the recipes of others, on rows that chose nothing."""
