//! Compares two tables by what lies at each sector, not by how the lines are cut.
//! Called by the device planner. Pure.

use crate::table::{DstArgs, Line, TARGET};

/// What a change of tables means for the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// Every sector shows the same data; only the lines' form or features differ.
    Form,
    /// The old sectors show the same data, and more follow.
    Grow,
    /// The sectors that stay show the same data, and fewer are left.
    Shrink,
    /// This sector, as the first, would show other data.
    OtherData { sector: u64 },
}

/// Where a run of sectors lies.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Node {
        node: String,
        offset: u64,
    },
    Disk {
        disk: String,
        offset: u64,
    },
    /// A target that is not looked into: same text, same place in it.
    Other {
        text: String,
        offset: u64,
    },
}

impl Place {
    fn after(&self, sectors: u64) -> Self {
        let mut place = self.clone();
        let (Self::Node { offset, .. } | Self::Disk { offset, .. } | Self::Other { offset, .. }) =
            &mut place;
        *offset = offset.saturating_add(sectors);
        place
    }
}

struct Run {
    length: u64,
    place: Place,
}

/// From `old` to `new`.
pub fn compare(old: &[Line], new: &[Line]) -> Difference {
    let (old, new) = (runs(old), runs(new));
    let (mut old, mut new) = (old.into_iter(), new.into_iter());
    let (mut left, mut right) = (old.next(), new.next());
    let mut sector = 0;
    loop {
        let (a, b) = match (left, right) {
            (None, None) => return Difference::Form,
            (None, Some(_)) => return Difference::Grow,
            (Some(_), None) => return Difference::Shrink,
            (Some(a), Some(b)) => (a, b),
        };
        if a.place != b.place {
            return Difference::OtherData { sector };
        }
        let common = a.length.min(b.length);
        sector += common;
        left = rest(a, common).or_else(|| old.next());
        right = rest(b, common).or_else(|| new.next());
    }
}

fn rest(run: Run, used: u64) -> Option<Run> {
    (run.length > used).then(|| Run {
        length: run.length - used,
        place: run.place.after(used),
    })
}

fn runs(lines: &[Line]) -> Vec<Run> {
    lines.iter().flat_map(runs_of).collect()
}

fn runs_of(line: &Line) -> Vec<Run> {
    let whole = |place| {
        vec![Run {
            length: line.length.0,
            place,
        }]
    };
    if line.target == TARGET
        && let Ok(args) = DstArgs::of(line)
    {
        let runs = args.extents.into_iter().map(|extent| Run {
            length: extent.length.0,
            place: Place::Node {
                node: extent.node.to_string(),
                offset: extent.offset.0,
            },
        });
        return runs.collect();
    }
    if let Some((disk, offset)) = linear(line) {
        let disk = disk.to_owned();
        return whole(Place::Disk { disk, offset });
    }
    let text = format!("{} {}", line.target, line.args);
    whole(Place::Other { text, offset: 0 })
}

/// The disk that a line shows, and from where on.
pub fn linear(line: &Line) -> Option<(&str, u64)> {
    let (disk, offset) = line.args.split_once(' ')?;
    let offset = offset.parse().ok()?;
    (line.target == "linear").then_some((disk, offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn difference(old: &[&str], new: &[&str]) -> Difference {
        let lines = |texts: &[&str]| texts.iter().map(|t| t.parse().unwrap()).collect::<Vec<_>>();
        compare(&lines(old), &lines(new))
    }

    #[test]
    fn data_counts_and_cuts_do_not() {
        let one = ["0 100 dst 1 a 0 100"];
        assert_eq!(
            difference(&one, &["0 100 dst 2 a 0 40 a 40 60 2 block_size 512"]),
            Difference::Form
        );
        assert_eq!(
            difference(&one, &["0 40 dst 1 a 0 40", "40 60 dst 1 a 40 60"]),
            Difference::Form
        );
        assert_eq!(difference(&one, &["0 150 dst 1 a 0 150"]), Difference::Grow);
        assert_eq!(
            difference(&one, &["0 150 dst 2 a 0 100 b 7 50"]),
            Difference::Grow
        );
        assert_eq!(difference(&one, &["0 99 dst 1 a 0 99"]), Difference::Shrink);
        assert_eq!(
            difference(&one, &["0 100 dst 2 a 0 40 b 40 60"]),
            Difference::OtherData { sector: 40 }
        );
        assert_eq!(
            difference(&one, &["0 100 linear 8:0 0"]),
            Difference::OtherData { sector: 0 }
        );
        assert_eq!(
            difference(&["0 9 linear 8:0 1"], &["0 9 linear 8:0 2"]),
            Difference::OtherData { sector: 0 }
        );
        assert_eq!(difference(&["0 9 zero"], &["0 12 zero"]), Difference::Grow);
    }

    #[test]
    fn swapped_extents_are_other_data() {
        let old = ["0 20 dst 2 a 0 10 b 0 10"];
        let new = ["0 20 dst 2 b 0 10 a 0 10"];
        assert_eq!(difference(&old, &new), Difference::OtherData { sector: 0 });
    }
}
