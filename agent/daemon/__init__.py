"""`orlop serve`: what is made, in which order, and how it ends."""
