"""Proof and measurement: compare two transcribers on the same audio, time them side by side, write it down.

Transcriber, Transcriber, clips --compare--> Comparison ---+
Transcribers, waveforms ---------latency--> LatencyResult -+--> Results (json) --report--> report.html
"""
