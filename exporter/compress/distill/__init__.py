"""`method = "distill"`: the model as it is now learns from a teacher."""
