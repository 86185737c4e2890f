"""RNN, GRU, LSTM: one Scan back through time, and a file for the cell of each."""

from onnxplain.vjp.recurrent import gru, lstm, rnn

__all__ = ["gru", "lstm", "rnn"]
