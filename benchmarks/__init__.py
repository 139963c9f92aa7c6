"""What headprune is measured by. Not part of the installed package; run from the root of a checkout."""
