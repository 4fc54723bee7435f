"""Several processes of one training: started, told apart, and held to what was asked."""
