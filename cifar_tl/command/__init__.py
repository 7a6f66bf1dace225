"""The commands, and the manners that they share: the only place that prints and exits."""
