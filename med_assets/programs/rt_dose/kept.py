"""What is kept of a prediction."""

PREDICTION = "prediction_gy.npy"
