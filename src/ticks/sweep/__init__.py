"""A sweep file run here: which jobs it means, which of them are done, and several at once."""
