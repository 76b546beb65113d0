"""A tuned model for other programs: targets write it, verification asks the programs it is for."""
