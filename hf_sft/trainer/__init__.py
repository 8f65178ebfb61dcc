"""One phase on `transformers.Trainer`: the step, resuming, signals, the curve."""
