//! Whether nodes answer, how fast, and what of their servers is worth knowing.
//! Called by the doctor's command. A probe leaves no connection behind and never takes the writer role.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::{Finding, Level};
use crate::kernel::{ConnectError, Connector, NbdFlags, Probed};
use crate::topology::{NodeSpec, Topology};
use crate::units::NodeName;

/// Nodes that are asked at the same time.
const AT_ONCE: usize = 64;
/// What connecting and shaking hands may take before it is worth a word: some round trips.
const SLOW: Duration = Duration::from_millis(100);

/// One finding for each node of the topology, in the order of their names.
pub async fn ask<C: Connector>(connector: &Arc<C>, topology: &Topology) -> Vec<Finding> {
    let mut waiting: Vec<_> = topology.nodes.iter().rev().collect();
    let (mut running, mut found) = (JoinSet::new(), Vec::new());
    loop {
        while running.len() < AT_ONCE
            && let Some((name, node)) = waiting.pop()
        {
            let (connector, name, spec) = (Arc::clone(connector), name.clone(), node.spec.clone());
            running.spawn(async move {
                let begun = Instant::now();
                let answer = connector.probe(&spec.uri).await;
                let finding = judge(&name, &spec, &answer, begun.elapsed());
                (name, finding)
            });
        }
        match running.join_next().await {
            Some(Ok(one)) => found.push(one),
            Some(Err(_)) => {}
            None => break,
        }
    }
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    found.into_iter().map(|(_, finding)| finding).collect()
}

fn judge(
    name: &NodeName,
    spec: &NodeSpec,
    answer: &Result<Probed, ConnectError>,
    took: Duration,
) -> Finding {
    let probed = match answer {
        Ok(probed) => probed,
        Err(error) => {
            return Finding::bad(
                format!("node {name} can't be used: {error}"),
                format!(
                    "look at the server and the network between; `dstd probe '{}'` tries again",
                    spec.uri
                ),
            );
        }
    };
    let found = &probed.negotiated;
    if let Some(writer) = probed.writer.as_ref().filter(|writer| writer.other) {
        return Finding::bad(
            format!("node {name} is held by another client: {}", writer.text),
            format!("end that one, or `dstd apply --steal {name}` (docs/writer-role.md)"),
        );
    }
    let mut remarks = Vec::new();
    if took > SLOW {
        remarks.push(
            "it is far away, or slow: more links help throughput, nothing helps each single flush",
        );
    }
    if spec.links.0 > 1 && !found.flags.multi_conn() {
        remarks.push("its server doesn't announce multi-conn, so it gets one link of those that the topology wants");
    }
    if !found.flags.has(NbdFlags::SEND_FLUSH) && !found.flags.read_only() {
        remarks.push("it knows no FLUSH, so it is taken as write-through: make sure that it is");
    }
    let server = match found.identity {
        Some(_) => "a dstd export",
        None => "a stock server",
    };
    let millis = took.as_secs_f64() * 1000.0;
    let text = format!(
        "node {name} answers in {millis:.1} ms: {}, {server}",
        found.size
    );
    match remarks.as_slice() {
        [] => Finding::good(text),
        remarks => Finding {
            level: Level::Note,
            text: format!("{text}\n{}", remarks.join("\n")),
            advice: None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Writer;
    use crate::kernel::sim::{SimNodes, export};

    fn topology() -> Topology {
        let nodes = "{b: {uri: 'nbd://b/', links: 2}, a: {uri: 'nbd://a/', links: 2}, c: {uri: 'nbd://c/'}}";
        Topology::parse_one("t.yaml", format!("version: 1\nnodes: {nodes}\n")).unwrap()
    }

    #[tokio::test]
    async fn each_node_is_asked_and_told_of_in_order() {
        let nodes = Arc::new(SimNodes::default());
        let good = export(2048, NbdFlags::SEND_FLUSH | NbdFlags::CAN_MULTI_CONN);
        nodes.exports().insert("nbd://a/".to_owned(), good);
        nodes
            .exports()
            .insert("nbd://b/".to_owned(), export(2048, 0));
        let found = ask(&nodes, &topology()).await;
        assert!(
            found[0].text.starts_with("node a answers in ")
                && found[0].text.ends_with("ms: 1MiB, a stock server"),
            "{}",
            found[0]
        );
        assert_eq!(found[0].level, Level::Good);
        assert_eq!(found[1].level, Level::Note);
        assert!(
            found[1].text.contains("doesn't announce multi-conn")
                && found[1].text.contains("write-through"),
            "{}",
            found[1]
        );
        let lost = "BAD   node c can't be used: nbd://c/: connection refused\n      do: look at the server and the network between; `dstd probe 'nbd://c/'` tries again";
        assert_eq!(found[2].to_string(), lost);
        assert!(nodes.attached().is_empty());
    }

    #[test]
    fn far_nodes_and_those_of_others_are_told() {
        let topology = topology();
        let (name, node) = topology.nodes.iter().next().unwrap();
        let mut probed = Probed {
            negotiated: export(2048, NbdFlags::SEND_FLUSH | NbdFlags::CAN_MULTI_CONN),
            writer: None,
        };
        let slow = judge(name, &node.spec, &Ok(probed.clone()), SLOW * 3);
        assert!(
            slow.text.starts_with("node a answers in 300.0 ms") && slow.text.contains("far away"),
            "{slow}"
        );
        probed.writer = Some(Writer {
            other: true,
            text: "client 10.0.0.9".to_owned(),
        });
        let held = judge(name, &node.spec, &Ok(probed), SLOW);
        assert_eq!(held.level, Level::Bad);
        assert!(held.text.contains("10.0.0.9") && held.advice.unwrap().contains("--steal a"));
    }
}
