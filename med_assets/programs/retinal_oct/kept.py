"""What is kept of a prediction."""

PREDICTION = "prediction.json"
