# Stands in for apache/kafka where no registry of images can be reached: the same program, configured by the same wrapper.
FROM oktawatch-test/base
COPY libs /opt/kafka/libs
COPY run /etc/kafka/docker/run
RUN useradd -m appuser && mkdir -p /opt/kafka/config /mnt/shared/config /etc/kafka/secrets /var/lib/kafka/data && \
    touch /etc/kafka/docker/server.properties /etc/kafka/docker/log4j2.yaml /etc/kafka/docker/tools-log4j2.yaml && \
    chmod 755 /etc/kafka/docker/run && chown -R appuser /opt/kafka/config /mnt/shared/config /etc/kafka /var/lib/kafka
USER appuser
EXPOSE 9092
VOLUME ["/etc/kafka/secrets", "/var/lib/kafka/data", "/mnt/shared/config"]
CMD ["/etc/kafka/docker/run"]
