"""The whole chain on real, trained models of every kind of attention."""
