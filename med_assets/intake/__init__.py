"""From files of a batch to grouped, verified, de-identified cases; what can't be used is quarantined."""
