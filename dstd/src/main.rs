//! Entry of the one binary `dstd`: parses the command line and hands over to `cli`.
//! Turns an error into a text and an exit status; decides nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    dstd::cli::main()
}
