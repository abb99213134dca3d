use std::sync::atomic::{AtomicU32, Ordering};

use super::{script::operators, *};
use crate::testing::{in_time, nobody, silent};

fn failover(token: &str) -> v1::ActRequest {
    request(super::failover("us-east"), "r", "a", token, None)
}

/// The answer of a control plane that does not lead.
fn not_leading(leader: Option<&str>) -> Status {
    let mut status = Status::failed_precondition("this control plane does not lead");
    if let Some(leader) = leader {
        status.metadata_mut().insert(LEADER_KEY, leader.parse().unwrap());
    }
    status
}

async fn leader() -> String {
    operators(|_, _| Ok(())).await
}

async fn follower_of(leader: &str) -> String {
    let leader = leader.to_owned();
    operators(move |_, _| Err(not_leading(Some(&leader)))).await
}

#[tokio::test]
async fn nobody_there_is_unreachable_and_nonsense_is_rejected() {
    let error = Operator::at([nobody()]).status().await.unwrap_err();
    assert!(matches!(error, OperatorError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("refused"), "{error}");
    for nonsense in ["not a url", "127.0.0.1:7070", "http://", ""] {
        let error = Operator::at([nonsense]).status().await.unwrap_err();
        assert!(matches!(error, OperatorError::NotAUrl(_)), "{nonsense}: {error}");
    }
    let error = Operator::at(Vec::<String>::new()).status().await.unwrap_err();
    assert!(matches!(error, OperatorError::Rejected(_)), "{error}");
}

#[tokio::test]
async fn the_leader_is_found_behind_dead_frozen_and_following_control_planes() {
    let (frozen, _frozen) = silent();
    let leader = leader().await;
    let follower = follower_of(&leader).await;
    let clueless = operators(|_, _| Err(not_leading(None))).await;
    for urls in [
        vec![&leader],
        vec![&follower],
        vec![&frozen, &clueless, &follower],
        vec![&frozen, &leader],
    ] {
        let operator = Operator::at(urls.into_iter().cloned().chain([nobody()]));
        in_time(operator.status()).await.unwrap();
        in_time(operator.act(failover("t"))).await.unwrap();
        assert_eq!(operator.in_order()[0], leader, "it is asked first from now on");
    }
}

#[tokio::test]
async fn an_election_is_waited_for() {
    let asked = AtomicU32::new(0);
    let elected = operators(move |_, _| {
        // Two rounds without a leader.
        match asked.fetch_add(1, Ordering::SeqCst) {
            0 | 1 => Err(not_leading(None)),
            _ => Ok(()),
        }
    })
    .await;
    in_time(Operator::at([elected]).history(5)).await.unwrap();
}

#[tokio::test]
async fn two_that_name_each_other_are_not_asked_without_end() {
    let (other, first) = (Arc::new(Mutex::new(String::new())), Arc::new(AtomicU32::new(0)));
    let (named, asked) = (other.clone(), first.clone());
    let a = operators(move |_, _| {
        asked.fetch_add(1, Ordering::SeqCst);
        Err(not_leading(Some(&named.lock())))
    })
    .await;
    *other.lock() = follower_of(&a).await;
    let limit = 3 * AGAIN_AFTER;
    let error = in_time(Operator::at([a]).ask(limit, status)).await.unwrap_err();
    assert!(matches!(error, OperatorError::NoLeader { .. }), "{error}");
    let asked = first.load(Ordering::SeqCst);
    assert!((1..=4).contains(&asked), "once per round, not {asked} times");
}

#[tokio::test]
async fn an_action_is_sent_on_only_when_it_was_certainly_not_carried_out() {
    let leader = leader().await;
    // This control plane answers reads as if it led, and refuses actions.
    let url = leader.clone();
    let former = operators(move |verb, _| match verb {
        "act" => Err(not_leading(Some(&url))),
        _ => Ok(()),
    })
    .await;
    let operator = Operator::at([former]);
    in_time(operator.act(failover("t"))).await.unwrap();
    assert_eq!(operator.in_order()[0], leader);

    // If the connection breaks, the action may have been done. No other control plane is tried, and the token
    // allows a second attempt.
    let tokens = Arc::new(Mutex::new(Vec::new()));
    let seen = tokens.clone();
    let broken = operators(move |verb, token| match verb {
        "act" => {
            let mut seen = seen.lock();
            seen.push(token.to_owned());
            if seen.len() < 2 {
                Err(Status::unavailable("broken off"))
            } else {
                Ok(())
            }
        }
        _ => Ok(()),
    })
    .await;
    let operator = Operator::at([broken, leader]);
    let error = in_time(operator.act(failover("t1"))).await.unwrap_err();
    let OperatorError::OutcomeUnknown { token, .. } = &error else {
        panic!("{error}");
    };
    assert!(error.to_string().contains("--token t1"), "{error}");
    in_time(operator.act(failover(token))).await.unwrap();
    assert_eq!(*tokens.lock(), ["t1", "t1"]);
}

#[tokio::test]
async fn a_mistake_in_a_request_is_named_at_once() {
    let strict = operators(|_, _| Err(Status::not_found("there is no region \"atlantis\""))).await;
    let error = in_time(Operator::at([strict]).why("atlantis")).await.unwrap_err();
    assert_eq!(
        error,
        OperatorError::Rejected("there is no region \"atlantis\"".to_owned())
    );
}

/// An operator with a certificate shows it to the leader too, even where a control plane names the leader by a plain-text URL.
#[test]
fn the_leader_is_asked_in_the_same_way_as_the_control_plane_that_named_it() {
    let named = |leader: &str, asked: &str| leader_named_by(&not_leading(Some(leader)), asked);
    let with_tls = Some("https://10.0.0.2:7100".to_owned());
    assert_eq!(named("http://10.0.0.2:7100", "https://10.0.0.1:7100"), with_tls);
    assert_eq!(named("https://10.0.0.2:7100", "https://10.0.0.1:7100"), with_tls);
    let plain = Some("http://10.0.0.2:7100".to_owned());
    assert_eq!(named("https://10.0.0.2:7100", "http://10.0.0.1:7100"), plain);
    for nonsense in ["10.0.0.2:7100", "ftp://10.0.0.2", "https://"] {
        assert_eq!(named(nonsense, "https://10.0.0.1:7100"), None, "{nonsense}");
    }
}
