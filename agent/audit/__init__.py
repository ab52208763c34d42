"""Who changed what on this node, in a chain of signed rows: `chain` is pure, `log` writes it, `reading` checks it."""
