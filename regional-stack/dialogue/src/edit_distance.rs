//! The edit distance of two words, for words that a recognizer heard wrong.

/// Letters to insert, drop, replace or swap with their neighbour. In bytes, because transcripts are ASCII.
pub(crate) fn edit_distance(left: &str, right: &str) -> usize {
    /// Three words of an utterance written as one are shorter. The function runs some ten thousand times per utterance,
    /// so its rows are arrays on the stack. `strsim::osa_distance` gives the same distances, but allocates for each pair.
    const BYTES_MAX: usize = 80;
    if left == right {
        return 0;
    }
    let (left, right) = (left.as_bytes(), right.as_bytes());
    if right.len() >= BYTES_MAX {
        return left.len().max(right.len());
    }
    let mut rows = [[0usize; BYTES_MAX]; 3];
    let [before_last, last, row] = &mut rows;
    let (mut before_last, mut last, mut row) = (before_last, last, row);
    for (column, cost) in last.iter_mut().enumerate() {
        *cost = column;
    }
    for (at, byte) in left.iter().enumerate() {
        row[0] = at + 1;
        for (column, other) in right.iter().enumerate() {
            let replaced = last[column] + usize::from(byte != other);
            let mut cost = replaced.min(last[column + 1] + 1).min(row[column] + 1);
            if at > 0 && column > 0 && left[at - 1] == *other && right[column - 1] == *byte {
                cost = cost.min(before_last[column - 1] + 1);
            }
            row[column + 1] = cost;
        }
        std::mem::swap(&mut before_last, &mut last);
        std::mem::swap(&mut last, &mut row);
    }
    last[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_counted_in_characters() {
        assert_eq!(edit_distance("kitchen", "kitchen"), 0);
        assert_eq!(edit_distance("kitchen", "kitten"), 2);
        assert_eq!(edit_distance("on", "off"), 2);
        assert_eq!(edit_distance("light", "lihgt"), 1);
    }
}
