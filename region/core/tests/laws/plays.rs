//! Golden scripts, in the manner of etcd's raft: `testdata/*.txt` reads like a play, and this performs it.
//!
//! A line is a command; the lines behind `> ` are what it must answer. `REWRITE=1` writes the answers anew.
