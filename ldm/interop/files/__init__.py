"""What every reader of other tools' files uses: JSON, names, values of the right kind, and what lies beside a file."""
