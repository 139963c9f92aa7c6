"""What comes from strangers, read within bounds: documents, directories, headers of weights, configs."""
