"""Trained denoisers as other libraries read them."""
