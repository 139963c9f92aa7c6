"""Whether heads do what their roles say: they are masked, and the model is asked to do just that."""
