"""What heads do: roles that are measured on attention weights, on made-up sequences, or on weights alone."""
